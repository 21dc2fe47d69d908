"""A page that shows what a run, or a folder of masks, holds: one HTML file without network."""
