"""Builds: settings, plan, execution of the stages."""
