"""The schema, as numbered steps of plain SQL that are never changed once released."""
