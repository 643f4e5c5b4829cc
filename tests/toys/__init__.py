"""A toy of each kind, one file each: what somebody writes who adds one to the tool."""
