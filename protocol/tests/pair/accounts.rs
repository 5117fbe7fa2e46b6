//! Who owes whom: channels, credit, contradictions and backups.
