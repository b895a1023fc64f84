"""Material of imagined pages: values, words, layouts and small talk; organizations and prose made of it."""
