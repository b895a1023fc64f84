"""What imagined pages and conversations are made of: values, words, layouts, small talk, eight languages."""
