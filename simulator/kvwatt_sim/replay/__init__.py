"""Virtual time: the same engine laws and the same decision code as live, as fast as they compute."""
