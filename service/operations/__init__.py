"""What operators do with an installation: back it up, restore it, find out what is wrong with it."""
