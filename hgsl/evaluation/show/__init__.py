"""Reports of an evaluation: tables, HTML page, contact sheet, curves."""
