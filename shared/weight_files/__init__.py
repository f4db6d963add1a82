"""Files of weights that strangers made, looked into without torch: what they hold and which network it is."""
