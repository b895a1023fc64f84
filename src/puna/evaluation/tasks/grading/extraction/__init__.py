"""Text -> facts: numbers, amounts, dates, times, phone numbers, ids, addresses, names, normalized by language."""
