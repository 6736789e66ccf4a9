"""The project's speeds beside their references (DESIGN section 6)."""
