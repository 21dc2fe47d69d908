"""What trained models give for images: CAMs, label maps and label probabilities, in memory."""
