/* libkvwattsim.so: the other side of the simulated GPUs, for the plant, the tests and the tool.
 * Every function returns 0 or an errno value. Structures are mirrored by kvwatt_sim.nvml.layout. */
#ifndef KVWS_CONTROL_H
#define KVWS_CONTROL_H

#include "state.h"

#define KVWS_API __attribute__((visibility("default")))

typedef struct {
    double t_s, energy_j, visible_j, power_w, average_w, busy, memory_busy;
    double temperature_c, cap_w, compute, memory;
    int32_t clock_mhz, load_clock_mhz, lock_min_mhz, lock_max_mhz;
    int32_t pending, n_faults, permission, recovered;
    uint32_t reasons;
    int32_t reserved;
} kvws_reading;

KVWS_API int kvws_sizes(uint64_t *spec, uint64_t *reading, uint64_t *fault, uint64_t *entry,
                        uint64_t *health);
KVWS_API int kvws_create(const char *path, unsigned int mode, const kvws_spec *specs, int n_gpus,
                         int permission, int manual_time, double manual_now_s);
KVWS_API int kvws_open(const char *path, kvws_state **state);
KVWS_API int kvws_close(kvws_state *state);
KVWS_API int kvws_count(kvws_state *state, int *n_gpus, double *now_s);
KVWS_API int kvws_spec_of(kvws_state *state, int gpu, kvws_spec *spec);
KVWS_API int kvws_read(kvws_state *state, int gpu, kvws_reading *reading);
KVWS_API int kvws_publish(kvws_state *state, int gpu, double compute, double memory);
KVWS_API int kvws_request_lock(kvws_state *state, int gpu, int min_mhz, int max_mhz);
KVWS_API int kvws_set_cap(kvws_state *state, int gpu, double cap_w);
KVWS_API int kvws_set_temperature(kvws_state *state, int gpu, double temperature_c);
KVWS_API int kvws_set_process(kvws_state *state, int gpu, int pid, uint64_t used_bytes);
/* xid_count is ours: each call with an xid is one more event. */
KVWS_API int kvws_set_health(kvws_state *state, int gpu, const kvws_health *health);
KVWS_API int kvws_set_permission(kvws_state *state, int permission);
KVWS_API int kvws_set_time(kvws_state *state, double now_s);
KVWS_API int kvws_reload_driver(kvws_state *state, int gpu);
KVWS_API int kvws_inject(kvws_state *state, int gpu, const kvws_fault *fault);
KVWS_API int kvws_clear_faults(kvws_state *state, int gpu);
KVWS_API int kvws_read_log(kvws_state *state, kvws_log_entry *entries, int capacity, int *n,
                           uint64_t *n_logged);
KVWS_API int kvws_hold_mutex(kvws_state *state, double seconds);

#endif
