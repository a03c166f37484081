"""What several measuring scripts share."""
