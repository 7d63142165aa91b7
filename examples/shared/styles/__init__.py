"""What styles.py is made of: digits in three styles, and who reads content and style off pictures."""
