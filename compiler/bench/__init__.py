"""How fast a compiled model is: measured beside the limits of the machine and beside other engines on equal weights."""
