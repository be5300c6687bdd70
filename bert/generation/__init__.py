"""Text -> examples: tokens, sentence pairs, masks; one part, all parts on Ray."""
