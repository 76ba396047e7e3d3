"""One start of a run, from a command line to an agent (`prepare`, `build`) and back to an exit status (`signals`)."""
