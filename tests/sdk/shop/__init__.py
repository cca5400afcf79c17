"""An app of the hub under test, with functions that clients call."""
