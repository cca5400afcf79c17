"""Test tools for the hub and for sites that install its apps; pytest loads `notifications.testing.plugin`."""
