"""What a run keeps of itself for those who ask afterwards how it went."""
