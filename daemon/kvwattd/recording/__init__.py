"""What a day of serving was: finished requests and GPU readings, for `kvwatt replay --record`."""
