"""Local web page of an index and the JSON API behind it; needs the extra ``[serve]``."""
