"""What a killed process, a full disk, a flipped bit or a race leaves behind."""
