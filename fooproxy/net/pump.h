/* The compiled pump, for _core.c. */

#ifndef FOOPROXY_PUMP_H
#define FOOPROXY_PUMP_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern PyTypeObject Pump_Type;

#endif
