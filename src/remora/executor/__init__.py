"""The executor: a front that owns port and sessions, and workers that own a device each."""
