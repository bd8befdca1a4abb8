#ifndef KVWS_LAW_H
#define KVWS_LAW_H

#include "state.h"

#define KVWS_REASON_IDLE 0x1u
#define KVWS_REASON_POWER_CAP 0x4u
#define KVWS_REASON_HW_SLOWDOWN 0x8u
#define KVWS_REASON_SW_THERMAL 0x20u
#define KVWS_REASON_HW_THERMAL 0x40u

double kvws_power_w(const double *law, double clock_mhz, double compute, double memory);
int kvws_highest_at_most_mhz(const kvws_spec *spec, int limit_mhz);
int kvws_thermal_level(const kvws_spec *spec, double temperature_c, int level);
void kvws_settle(const kvws_gpu *gpu, kvws_motion *motion);

#endif
