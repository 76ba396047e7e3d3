"""T steps of N environments (`collector`) become a `Batch`, whose forward passes are cached or computed again."""
