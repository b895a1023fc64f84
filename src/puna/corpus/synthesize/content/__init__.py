"""Material of imagined pages: values, words, layouts, small talk, organizations and prose."""
