"""Where files lie: folders on this machine and prefixes of object stores, behind one protocol."""
