"""One file per method. A file's name is the method's name; nothing else has to be edited to add one."""
