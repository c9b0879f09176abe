"""Online detectors, one file each, built from frozen specs."""
