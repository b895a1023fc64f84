"""The basics in eight languages: small pages of a business, and conversations about the pages."""
