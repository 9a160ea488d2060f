"""Opening files that nobody vouches for: what they may take, measured before anything is allocated (SECURITY.md)."""
