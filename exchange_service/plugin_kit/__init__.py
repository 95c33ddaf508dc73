"""The functions and classes that `plugin_api` hands to plugins, one file for each subject."""
