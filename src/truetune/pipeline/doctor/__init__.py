"""`truetune doctor`: what this machine and its environment can do, and what is wrong with them."""
