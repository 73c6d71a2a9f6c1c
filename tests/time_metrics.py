"""The metrics of a run that depend on the clock, which differ between equal runs."""

TIME_METRICS = {
    "images_per_second",
    "data_wait",
    "time/data",
    "time/device",
    "time/host",
    "time/compile",
    "goodput",
}
