"""What `plugin_api` hands to plugins, a file for each subject."""
