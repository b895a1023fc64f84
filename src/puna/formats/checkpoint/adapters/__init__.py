"""An adapter in files: PEFT's directory and the other spellings of one, read, merged into a base and written."""
