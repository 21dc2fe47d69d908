"""Scores of label maps and CAMs against true masks, their intervals, tables and charts."""
