"""What a run leaves for people to look at: picture panels, curves and the table of results."""
