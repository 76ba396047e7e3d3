"""What is measured while a run trains: metrics, sketches, energy, and with which versions and on which hosts."""
