"""One image, from pixels to masks: the loop over crops and prompts, on the host or on a device."""
