"""The controller: decode loop, session log, links to workers, public API; Ray only in `app*`."""
