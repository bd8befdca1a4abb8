/* The laws that close the loop clock -> power -> temperature -> clock. Pure: no time, no state kept. */
#include "law.h"

/* Thermal control: each level takes THERMAL_STEP of the boost clock away. A level is entered one degree
 * above the one before and left THERMAL_HYSTERESIS_C below its entry, so that it cannot chatter. */
#define THERMAL_STEP 0.05
#define THERMAL_HYSTERESIS_C 2.0
#define THERMAL_SW_LEVELS 5
#define THERMAL_HW_LEVEL 6 /* hardware slowdown: half the boost clock */

/* Order of PowerLaw.as_array() in kvwatt_sim.nvml.spec. */
enum { F_REF_MHZ, IDLE_W, IDLE_SLOPE_W, COMPUTE_W, MEMORY_CLOCK_W, MEMORY_W, V_MIN, V_SLOPE };

double kvws_power_w(const double *law, double clock_mhz, double compute, double memory)
{
    double ratio = clock_mhz / law[F_REF_MHZ];
    double volts = 1.0 + law[V_SLOPE] * (ratio - 1.0);
    if (volts < law[V_MIN])
        volts = law[V_MIN];
    double dynamic = ratio * volts * volts;
    return law[IDLE_W] + law[IDLE_SLOPE_W] * ratio
        + dynamic * (law[COMPUTE_W] * compute + law[MEMORY_CLOCK_W] * memory) + law[MEMORY_W] * memory;
}

/* Highest supported clock at or below the limit, or the lowest supported one. */
int kvws_highest_at_most_mhz(const kvws_spec *spec, int limit_mhz)
{
    int best = spec->clocks_mhz[0];
    for (int i = 0; i < spec->n_clocks && spec->clocks_mhz[i] <= limit_mhz; i++)
        best = spec->clocks_mhz[i];
    return best;
}

int kvws_thermal_level(const kvws_spec *spec, double temperature_c, int level)
{
    while (level < THERMAL_HW_LEVEL && temperature_c >= spec->slowdown_c + level)
        level++;
    while (level > 0 && temperature_c < spec->slowdown_c + (level - 1) - THERMAL_HYSTERESIS_C)
        level--;
    return level;
}

static int thermal_limit_mhz(const kvws_spec *spec, int level)
{
    double share = level > THERMAL_SW_LEVELS ? 0.5 : 1.0 - THERMAL_STEP * level;
    return (int)(spec->boost_mhz * share);
}

static int idle_clock_mhz(const kvws_gpu *gpu)
{
    int clock_mhz = gpu->spec.idle_mhz;
    if (gpu->lock.max_mhz && clock_mhz < gpu->lock.min_mhz)
        clock_mhz = gpu->lock.min_mhz;
    if (gpu->lock.max_mhz && clock_mhz > gpu->lock.max_mhz)
        clock_mhz = gpu->lock.max_mhz;
    return clock_mhz;
}

/* Lowers the clock to what the temperature permits. */
static int thermal_clock_mhz(const kvws_spec *spec, int clock_mhz, kvws_motion *motion)
{
    int limit_mhz = thermal_limit_mhz(spec, motion->throttle_level);
    if (motion->throttle_level == 0 || clock_mhz <= limit_mhz)
        return clock_mhz;
    motion->reasons |= KVWS_REASON_SW_THERMAL;
    if (motion->throttle_level > THERMAL_SW_LEVELS)
        motion->reasons |= KVWS_REASON_HW_THERMAL | KVWS_REASON_HW_SLOWDOWN;
    return kvws_highest_at_most_mhz(spec, limit_mhz);
}

/* Lowers the clock until the power is within the cap, or to the lowest clock. */
static int capped_clock_mhz(const kvws_gpu *gpu, int clock_mhz, kvws_motion *motion)
{
    const kvws_spec *spec = &gpu->spec;
    int i = spec->n_clocks - 1;
    while (i > 0 && spec->clocks_mhz[i] > clock_mhz)
        i--;
    int start = i;
    while (i > 0 && kvws_power_w(spec->law, spec->clocks_mhz[i], gpu->compute, gpu->memory) > gpu->cap_w)
        i--;
    if (i < start)
        motion->reasons |= KVWS_REASON_POWER_CAP;
    return spec->clocks_mhz[i];
}

/* Clock, reasons and power of this moment, from lock, activity, temperature and cap. */
void kvws_settle(const kvws_gpu *gpu, kvws_motion *motion)
{
    const kvws_spec *spec = &gpu->spec;
    int clock_mhz = gpu->lock.max_mhz ? gpu->lock.max_mhz : spec->boost_mhz;
    motion->reasons = 0;
    if (motion->idle)
        clock_mhz = idle_clock_mhz(gpu);
    clock_mhz = thermal_clock_mhz(spec, clock_mhz, motion);
    clock_mhz = capped_clock_mhz(gpu, clock_mhz, motion);
    if (motion->idle && !motion->reasons)
        motion->reasons = KVWS_REASON_IDLE;
    motion->clock_mhz = clock_mhz;
    motion->power_w = kvws_power_w(spec->law, clock_mhz, gpu->compute, gpu->memory);
}
