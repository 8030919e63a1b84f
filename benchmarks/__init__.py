"""The programs behind every performance figure; their results are in records/."""
