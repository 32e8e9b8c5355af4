"""The project's own instruction records: content and templates."""
