"""Files and folders: drafters on disk, checks of what comes from elsewhere, and storage that survives a kill."""
