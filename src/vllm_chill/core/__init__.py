"""The pure core: values in, values out. Time is a parameter, in seconds of whatever clock the caller has."""
