"""What the sections of a page are made of: tags, tables, bars, axes, pictures, numbers as text."""
