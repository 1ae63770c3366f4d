"""Scores of a scan -> entropy map, suspicion, split: which samples are to be trusted."""
