"""The studio: making clips in a browser, and looking at them in the same player as the pages."""
