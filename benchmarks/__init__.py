"""Measurements that anyone can run again; each has a control that must lose."""
